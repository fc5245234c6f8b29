"""What a picture can be reduced to, to steer a new one: one module or package for each condition."""
