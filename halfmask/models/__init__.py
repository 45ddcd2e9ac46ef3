"""Networks: encoders, bottlenecks, decoders and the models made of them."""
