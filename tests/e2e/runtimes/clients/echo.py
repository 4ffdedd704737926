"""`echo.py HOST:PORT` makes a gRPC call and reads a gRPC stream."""
import sys
import grpc

channel = grpc.secure_channel(sys.argv[1], grpc.ssl_channel_credentials())
print(channel.unary_unary("/test.Echo/Unary")(b"hello", timeout=20).decode())
print(*(part.decode() for part in channel.unary_stream("/test.Echo/Split")(b"abc", timeout=20)))
