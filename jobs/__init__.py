"""What a user does with a job: one file per verb, and the command line on top."""
