//! For the scale tool: hosts without kernels.
