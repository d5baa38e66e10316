mod cases;
mod detection;
mod parsing;
