"""What both training stages share: arguments, data, the trainer, records and estimates."""
