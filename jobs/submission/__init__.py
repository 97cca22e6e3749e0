"""A submitted job: who takes it, what is shipped, how it is followed."""
