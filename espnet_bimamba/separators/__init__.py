"""Speech enhancement: an ESPnet separator, and the window and the loss that the paper has."""
