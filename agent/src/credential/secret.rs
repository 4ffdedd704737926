//! A secret's bytes: never shown, zeroised, exposed in one place.
