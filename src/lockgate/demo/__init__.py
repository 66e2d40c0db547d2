"""`lockgate up --demo`: this machine's readings as devices, a cloud that goes away, and a live table in between."""
