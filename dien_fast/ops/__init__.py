"""The native operators: schema, autograd and fallback of each, and the choice of the backend."""
