"""A job on a cluster that is already there: what is shipped, who takes it, how it is followed."""
