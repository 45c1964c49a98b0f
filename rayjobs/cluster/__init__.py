"""Ray as the verbs need it. Counts as a verb in the law of imports: only verbs import it (its `section` apart, which knows no Ray)."""
