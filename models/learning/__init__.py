"""What is learned online: clusters, visits, replenishment, goods, tones, odds of clauses."""
