"""The sections that are records: each read by the kinds of its fields into a settings Struct."""
