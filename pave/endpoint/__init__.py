"""Language models that are asked: endpoints, what they replied so far, and many requests at a time."""
