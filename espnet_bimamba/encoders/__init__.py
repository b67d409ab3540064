"""ESPnet encoders, one file each. Nothing is imported here: `options` must load without torch."""
