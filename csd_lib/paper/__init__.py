"""The paper's tables and figures, and our recorded runs beside them."""
