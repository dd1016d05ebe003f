"""The certificate authority. Nothing here yet: TLS interception is a later issue."""
