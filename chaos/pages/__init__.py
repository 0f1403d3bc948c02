"""Pages made of results: of a run, the evidence, isolation, the two styles, performance."""
