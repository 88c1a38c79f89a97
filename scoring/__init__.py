"""Character error rate and the text normalisation it rests on."""
