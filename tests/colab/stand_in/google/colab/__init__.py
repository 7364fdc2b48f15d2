"""Stands in for the package that every Colab runtime has loaded."""
