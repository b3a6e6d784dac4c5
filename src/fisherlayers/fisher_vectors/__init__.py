"""Fisher vectors: from images to descriptors, encodings, layers and classifiers."""
