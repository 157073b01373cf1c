"""One job: what is asked for, its parts, and the run that commits them."""
