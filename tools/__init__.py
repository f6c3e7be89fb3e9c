"""What a change has to pass, and what checks the repository itself. Not part of the installed package."""
