"""Hugging Face models behind one interface, causal and encoder-decoder alike."""
