"""Tables, lists and Parquet files: their columns, what their labels mean, and images inside Parquet."""
