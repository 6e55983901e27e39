//! keelson-controllers
