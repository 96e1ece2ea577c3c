"""A trained model made smaller and faster, step by step, and verified from the file that comes out."""
