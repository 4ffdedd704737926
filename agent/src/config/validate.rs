//! From the file to the settings, with every error at once.
