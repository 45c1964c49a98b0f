"""The verb that learns from what people have labelled so far, and says what they should label next."""
