"""The page at `/`: a clip, a question, and the answers of the base and of the patched base side by side.

routes     the page, plain HTML, CSS and JavaScript that ask nobody but this server, and what it asks for
examples   clips of the Playroom to try          cards   what a patch says of itself, and its certificate
"""
