"""One refit of one cluster: plan, fit, judge, publish."""
