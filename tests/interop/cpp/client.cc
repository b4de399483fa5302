// The cases of tests/interop on gRPC for C++. Its arguments are target, certificate of the authority or "", and how many
// calls run at once.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "penstock/v1/generation.grpc.pb.h"

namespace pb = penstock::v1;
using Stub = pb::GenerationService::Stub;

pb::GenerationSpec SpecOf(const std::string& content) {
  pb::GenerationSpec spec;
  auto* message = spec.mutable_messages()->add_messages();
  message->set_role(pb::ROLE_USER);
  message->set_content(content);
  return spec;
}

std::string CodeOf(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::CANCELLED: return "CANCELLED";
    case grpc::StatusCode::DEADLINE_EXCEEDED: return "DEADLINE_EXCEEDED";
    case grpc::StatusCode::UNAVAILABLE: return "UNAVAILABLE";
    default: return "code " + std::to_string(status.error_code()) + ": " + status.error_message();
  }
}

// What a stream's events come to.
struct Seen {
  std::string answer;
  bool is_finished = false;

  void Add(const pb::GenerationEvent& event) {
    answer += event.answer().text();
    is_finished = event.has_finished();
  }
  std::string End(const grpc::Status& status) const {
    if (!status.ok()) return CodeOf(status);
    return is_finished ? answer : "ended without its last event";
  }
};

std::string Unary(Stub& stub) {
  grpc::ClientContext context;
  pb::GenerateRequest request;
  *request.mutable_spec() = SpecOf("SHORT");
  pb::GenerateResponse reply;
  const auto status = stub.Generate(&context, request, &reply);
  return status.ok() ? reply.candidates(0).answer() : CodeOf(status);
}

std::string Stream(Stub& stub, grpc::ClientContext& context, const std::string& content, bool is_left = false) {
  pb::StreamGenerateRequest request;
  *request.mutable_spec() = SpecOf(content);
  const auto call = stub.StreamGenerate(&context, request);
  Seen seen;
  for (pb::StreamGenerateResponse reply; call->Read(&reply);) {
    seen.Add(reply.event());
    if (is_left && reply.event().has_answer()) context.TryCancel();
  }
  return seen.End(call->Finish());
}

// Says that it was thought enough at the first thought.
std::string Bidi(Stub& stub) {
  grpc::ClientContext context;
  const auto call = stub.Interact(&context);
  pb::InteractRequest request;
  *request.mutable_start() = SpecOf("SLOW THOUGHT");
  call->Write(request);
  Seen seen;
  bool is_said = false;
  for (pb::InteractResponse reply; call->Read(&reply);) {
    seen.Add(reply.event());
    if (reply.event().has_thought() && !is_said) {
      is_said = true;
      request.mutable_finish_thinking();
      call->Write(request);
      call->WritesDone();
    }
  }
  return seen.End(call->Finish());
}

std::string Deadline(Stub& stub) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(700));
  return Stream(stub, context, "SLOW ANSWER");
}

std::string Parallel(Stub& stub, int count) {
  std::vector<std::string> ends(count);
  std::vector<std::thread> threads;
  for (auto& end : ends) {
    threads.emplace_back([&stub, &end] {
      grpc::ClientContext context;
      end = Stream(stub, context, "PARALLEL");
    });
  }
  for (auto& thread : threads) thread.join();
  std::map<std::string, int> seen;
  for (const auto& end : ends) ++seen[end];
  std::string text;
  for (const auto& [end, times] : seen) text += (text.empty() ? "" : ", ") + std::to_string(times) + " " + end;
  return text;
}

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char one : text) {
    if (one == '"' || one == '\\') quoted += '\\';
    quoted += one == '\n' ? ' ' : one;
  }
  return quoted + "\"";
}

int main(int, char** arguments) {
  std::shared_ptr<grpc::ChannelCredentials> security = grpc::InsecureChannelCredentials();
  if (const std::string file = arguments[2]; !file.empty()) {
    std::stringstream pem;
    pem << std::ifstream(file).rdbuf();
    grpc::SslCredentialsOptions options;
    options.pem_root_certs = pem.str();
    security = grpc::SslCredentials(options);
  }
  const auto stub = pb::GenerationService::NewStub(grpc::CreateChannel(arguments[1], security));
  grpc::ClientContext plain, left;
  const std::vector<std::pair<std::string, std::string>> ends = {
      {"unary", Unary(*stub)},
      {"stream", Stream(*stub, plain, "SHORT")},
      {"bidi", Bidi(*stub)},
      {"cancel", Stream(*stub, left, "SLOW ANSWER", true)},
      {"deadline", Deadline(*stub)},
      {"parallel", Parallel(*stub, std::stoi(arguments[3]))},
  };
  std::cout << "{";
  for (size_t at = 0; at < ends.size(); ++at) {
    std::cout << (at ? ", " : "") << Quoted(ends[at].first) << ": " << Quoted(ends[at].second);
  }
  std::cout << "}" << std::endl;
  return 0;
}
