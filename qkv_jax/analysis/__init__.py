"""Looking into models: geometry of X, Q, K and V, circuits of attention, worked examples."""
