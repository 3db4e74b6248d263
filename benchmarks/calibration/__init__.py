"""How far predicted costs and flags can be trusted, on fresh episodes, beside what knows less."""
