"""Which tiles a person should label next: from what a head says of them, and where they lie in the embedding. Numpy alone."""
