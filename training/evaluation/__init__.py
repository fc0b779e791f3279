"""Sample quality: images as the service generates them, compared with the test split, if possible by a judge."""
