# `echo.rb HOST:PORT` makes a gRPC call and reads a gRPC stream.
require "grpc"
stub = GRPC::ClientStub.new(ARGV[0], GRPC::Core::ChannelCredentials.new)
plain = proc { |bytes| bytes }
late = Time.now + 20
puts stub.request_response("/test.Echo/Unary", "hello", plain, plain, deadline: late)
puts stub.server_streamer("/test.Echo/Split", "abc", plain, plain, deadline: late).to_a.join(" ")
