//! The confinement, tried in a child of the test: this test binary started again for one helper test.
