"""The models that training starts from: fetched, converted or made from scratch."""
