"""What one served action costs, over the same kind of server that does nothing but run the network, and over peers."""
