"""From a model folder to the Hugging Face Hub, with its model card."""
