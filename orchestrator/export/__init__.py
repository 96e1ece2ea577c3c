"""Files made of a trained model, each reloaded in a fresh process and compared before it is called done."""
