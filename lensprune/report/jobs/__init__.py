"""What each command measures, writes into its folder and prints."""
