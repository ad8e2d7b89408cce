"""Sources and targets of encoder-decoder models, as their tokenizers write them."""
