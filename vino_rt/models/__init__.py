"""Model families: each folder holds one family's configuration, reference modules, conditioner and weight names."""
