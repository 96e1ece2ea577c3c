"""What the user asked for. Imports neither torch, ray nor mlflow."""
