"""What other processes on the machine cost each system."""
