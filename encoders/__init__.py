"""One file per frozen side-channel encoder, imported as `pave.encoders.<name>` by `pave.load_encoder(name)`."""
