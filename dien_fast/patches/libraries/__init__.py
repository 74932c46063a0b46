"""What is known of each library's DIEN: a file a library."""
