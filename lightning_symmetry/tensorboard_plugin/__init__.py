"""The Symmetry tab of TensorBoard. Nothing here imports torch: TensorBoard loads it at every start."""
