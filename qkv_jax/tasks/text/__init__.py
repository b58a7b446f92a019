"""Tasks on texts: masked language modelling and classification."""
